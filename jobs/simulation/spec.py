"""The build spec of a simulated log, as text with the fields {history_length}, {max_rejected} and {suffix}.

A corrupt log's spec goes on with POLICIES, whose fields are {max_events}, {min_events}, {within} and {until}.
"""

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
dwell_ms = {{ type = "int32", min = 0, max = 86_400_000 }}
click = {{ type = "int8", values = [0, 1] }}

# [items]                                 # these are the item's and not the event's: stored once per item of a
# features = ["author_id", "topic"]       # shard, the dataset is a fifth smaller, and its build takes a little longer

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
# Some rows (tab < 0) say that a shown item was bought. Requests whose window was not over at `until` are held back.
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

# Bots have more events than anybody, newcomers hardly any.
[users]
max_events = {max_events}
over_max_events = "reject_user"
min_events = {min_events}
"""
