#!lua flags=allow-oom
-- Remove the entry of a session that ended from the group and from the stream.
--
-- Returns nil.
local sessions_key = KEYS[1]
local group = ARGV[1]
local entry_id = ARGV[2]

redis.call("XACK", sessions_key, group, entry_id)
redis.call("XDEL", sessions_key, entry_id)
