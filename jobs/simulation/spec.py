"""The build spec of a simulated log, as a template with the fields {history_length}, {max_rejected} and {suffix}.

The spec of a corrupt log also has POLICIES, whose fields are {max_events}, {min_events}, {within} and {until}.
"""

SPEC = """\
# The build spec of a simulated log. Discover rows (tab > 0) are the targets. They are not part of the history: their
# topics were shown at random, so a few of their clicks would reveal what otherwise takes a long history of feed rows.
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
dwell_ms = {{ type = "int32", min = 0, max = 86_400_000 }}
click = {{ type = "int8", values = [0, 1] }}

# [items]                                 # these features belong to the item: stored once per item and shard, the
# features = ["author_id", "topic"]       # dataset is a fifth smaller, and its build takes a little longer

[requests]
source = "log"
where = "tab > 0"
user_id = "user_id"
item_id = "item_id"
request_time = {{ column = "request_time", unit = "ms" }}
request_id = "request_id"

[requests.features]
tab = {{ type = "int8", values = [1, 2] }}

[requests.target_features]
author_id = "int32"
topic = "int16"
position = {{ type = "int8", min = 0, max = 11 }}

[requests.labels]
click = {{ type = "int8", values = [0, 1] }}
long_view = {{ type = "int8", values = [0, 1] }}
like = {{ type = "int8", values = [0, 1] }}
"""

POLICIES = """
# Some rows (tab < 0) report that a shown item was bought. Requests whose label window is open at `until` are pending.
[requests.labels.bought]
aggregate = "any"
within = "{within}"

[actions]
source = "log"
where = "tab < 0"
user_id = "user_id"
item_id = "item_id"
event_time = {{ column = "event_time", unit = "ms" }}
request_id = "request_id"
until = {until}

# Bots have more events than any regular user, newcomers have almost none.
[users]
max_events = {max_events}
over_max_events = "reject_user"
min_events = {min_events}
"""
