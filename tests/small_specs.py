"""Small specs: one log that feeds history and requests, and a log for each."""

ONE_LOG = """
[sources.log]
path = "log.parquet"
explode = { lists = "item" }
[history]
source = "log"
user_id = "user"
item_id = { column = "item", type = "string" }
event_time = { column = "time", unit = "ms" }
arrival_time = { column = "arrival", unit = "ms" }
request_id = { column = "request", type = "string" }
features = { tab = "int8", word = "string" }
[requests]
source = "log"
user_id = "user"
item_id = { column = "item", type = "string" }
request_time = { column = "time", unit = "s" }
request_id = { column = "request", type = "string" }
features = { tab = "int8", page = { column = "tab", type = "int16" } }
target_features = { price = { type = "float32", default = 0.5 } }
labels = { click = { contained_in = "clicked" }, like = "bool" }
"""
TWO_LOGS = """
[sources.plays]
path = "plays.parquet"
[sources.shown]
path = "shown.parquet"
[history]
source = "plays"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "ms" }
[requests]
source = "shown"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "ms" }
"""
