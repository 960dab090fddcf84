#!/bin/bash
# The same for cron: append the days until last midnight (UTC), validate the dataset, train on it.
#
#   30 3 * * * LONGBATCH_DIR=/data /opt/longbatch/examples/schedulers/daily.sh >> /var/log/longbatch.log 2>&1
#
# LONGBATCH_DIR contains spec.toml, optionally train.toml, and gets dataset/, models/ and metrics/. The script may be run
# again at any time. It ends with the exit code of the command that failed.
set -euo pipefail

cd "${LONGBATCH_DIR:?set it to the folder of spec.toml}"
longbatch=${LONGBATCH:-longbatch}
until=${UNTIL:-$(date -u +%F)}
mkdir -p metrics models

exec 9> .daily.lock
flock --nonblock 9 || { echo "another run is active" >&2; exit 0; }

# Runs a command up to three times. Codes 1 and 2 (the data or the spec is wrong) would fail again.
run() {
    local command=$1 code
    shift
    for attempt in 1 2 3; do
        code=0
        "$longbatch" --metrics "metrics/$until-$command.json" "$command" "$@" || code=$?
        case $code in
        0) return 0 ;;
        1 | 2) return "$code" ;;
        esac
        echo "attempt $attempt of longbatch $command ended with exit code $code" >&2
        sleep "${RETRY_SECONDS:-600}"
    done
    return "$code"
}

fingerprint() {
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["dataset"]["fingerprint"][:16])' "$1"
}

if compgen -G 'dataset/snapshots/*.json' > /dev/null; then
    run append spec.toml dataset --until "$until"
else
    run build spec.toml dataset --until "$until"
fi
run validate dataset --users 20

# A run belongs to one content of the dataset: a retry continues it, and other content starts another one.
model=models/$(fingerprint "metrics/$until-validate.json")
options=()
[[ -e train.toml ]] && options+=(--config train.toml)
[[ -e $model/checkpoint.pt ]] && options+=(--resume)
run train dataset "$model" "${options[@]}"
