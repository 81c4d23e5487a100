#!lua flags=allow-oom
-- Release a permit, unless a later claim of the session has requested it.
--
-- Returns 1 if the permit is free.
local queue_key = KEYS[1]
local holders_key = KEYS[2]  -- as in request_permits.lua
local member = ARGV[1]
local entry_id = ARGV[2]
local delivery_count = ARGV[3]

local known = redis.call("HGET", holders_key, member) or "0-0 0"
local ms, seq, count = string.match(known, "^(%d+)-(%d+) (%d+)")
local own_ms, own_seq = string.match(entry_id, "^(%d+)-(%d+)$")
for _, pair in ipairs({{ms, own_ms}, {seq, own_seq}, {count, delivery_count}}) do
  local theirs, own = tonumber(pair[1]), tonumber(pair[2])
  if theirs > own then
    return 0
  elseif theirs < own then
    break
  end
end
redis.call("ZREM", queue_key, member)
redis.call("HDEL", holders_key, member)
return 1
