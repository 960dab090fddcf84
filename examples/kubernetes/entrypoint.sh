#!/bin/bash
# Starts what Kubernetes asks for. Spark passes "driver" or "executor" as the first argument, and the settings of an
# executor as environment variables. Everything else is a command.
set -euo pipefail

case "${1:-}" in
driver)
    shift
    command=("$SPARK_HOME/bin/spark-submit" --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS"
        --deploy-mode client "$@")
    ;;
executor)
    # Options of the JVM are in SPARK_JAVA_OPT_0, SPARK_JAVA_OPT_1, ...
    options=()
    for ((number = 0; ; number++)); do
        name="SPARK_JAVA_OPT_$number"
        [[ -v "$name" ]] || break
        options+=("${!name}")
    done
    command=("$JAVA_HOME/bin/java" "${options[@]}" "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY"
        -cp "${SPARK_CONF_DIR:-$SPARK_HOME/conf}:$SPARK_HOME/jars/*"
        org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend
        --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES"
        --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP"
        --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME")
    ;;
*)
    command=("$@")
    ;;
esac

# tini forwards signals, so that a pod that is deleted ends like Ctrl-C and leaves no files.
exec tini -s -- "${command[@]}"
