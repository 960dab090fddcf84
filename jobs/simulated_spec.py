"""The build spec of a simulated log, as text with the fields {history_length}, {max_rejected} and {suffix}."""

SPEC = """\
# The build spec of a simulated log. Discover rows (tab > 0) are the targets. They stay out of the history: their
# topics were shown at random, so their clicks would tell at once what only a long history of the feed can tell.
name = "simulated"
history_length = {history_length}
compression = "zstd"
max_rejected = {max_rejected}

[sources.log]
path = "log/*.{suffix}"

[history]
source = "log"
where = "tab = 0"
user_id = "user_id"
item_id = "item_id"
event_time = {{ column = "event_time", unit = "ms" }}
arrival_time = {{ column = "arrival_time", unit = "ms" }}
delay = "0s"
request_id = "request_id"

[history.features]
author_id = "int32"
topic = "int16"
dwell_ms = "int32"
click = "int8"

[requests]
source = "log"
where = "tab > 0"
user_id = "user_id"
item_id = "item_id"
request_time = {{ column = "request_time", unit = "ms" }}
request_id = "request_id"

[requests.features]
tab = "int8"

[requests.target_features]
author_id = "int32"
topic = "int16"
position = "int8"

[requests.labels]
click = "int8"
long_view = "int8"
like = "int8"
"""
