#!lua flags=allow-oom
-- Release a permit, unless a later claim of the session has requested it.
--
-- KEYS  1 gate  2 holders, as in gate.lua
-- ARGV  1 member  2 entry id  3 delivery count
-- Returns 1 if the permit is free.
local known = redis.call("HGET", KEYS[2], ARGV[1]) or "0-0 0"
local ms, seq, count = string.match(known, "^(%d+)-(%d+) (%d+)")
local our_ms, our_seq = string.match(ARGV[2], "^(%d+)-(%d+)$")
for _, pair in ipairs({{ms, our_ms}, {seq, our_seq}, {count, ARGV[3]}}) do
  local theirs, ours = tonumber(pair[1]), tonumber(pair[2])
  if theirs > ours then
    return 0
  elseif theirs < ours then
    break
  end
end
redis.call("ZREM", KEYS[1], ARGV[1])
redis.call("HDEL", KEYS[2], ARGV[1])
return 1
