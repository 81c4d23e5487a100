#!lua flags=allow-oom
-- Publish the events of a rejected session entry, unless its session has a state.
--
-- KEYS  1 state  2 lane turns  3 session turns  4 audio
-- ARGV  1 run  2 session  3 out  4 retention, s  then (type, event) for seq 1, 2, ...
-- Returns 1 if published: the session ended before it began; 0 if a state exists (no change).
if redis.call("EXISTS", KEYS[1]) == 1 then
  return 0
end
local seq = 0
for at = 5, #ARGV, 2 do
  local fields = {"session", ARGV[2], "type", ARGV[at], "event", ARGV[at + 1]}
  redis.call("XADD", KEYS[2], "*", unpack(fields))
  if ARGV[3] == "session" then
    redis.call("XADD", KEYS[3], "*", unpack(fields))
    redis.call("EXPIRE", KEYS[3], ARGV[4])
  end
  seq = seq + 1
end
redis.call("HSET", KEYS[1], "status", "ended", "run", ARGV[1], "entry", ARGV[1], "seq", seq)
redis.call("EXPIRE", KEYS[1], ARGV[4])
redis.call("SET", KEYS[4], "ended", "EX", ARGV[4])
return 1
