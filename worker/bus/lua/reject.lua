#!lua flags=allow-oom
-- Publish the events of a rejected session entry, unless its session has a state.
--
-- Returns 1 if published: the session ended before it began; 0 if a state exists (no change).
local state_key = KEYS[1]
local lane_turns_key = KEYS[2]
local session_turns_key = KEYS[3]
local audio_key = KEYS[4]
local run = ARGV[1]
local session = ARGV[2]
local out = ARGV[3]
local retention_s = ARGV[4]
local events_at = 5  -- (type, event) for seq 1, 2, ...

if redis.call("EXISTS", state_key) == 1 then
  return 0
end
local seq = 0
for at = events_at, #ARGV, 2 do
  local fields = {"session", session, "type", ARGV[at], "event", ARGV[at + 1]}
  redis.call("XADD", lane_turns_key, "*", unpack(fields))
  if out == "session" then
    redis.call("XADD", session_turns_key, "*", unpack(fields))
    redis.call("EXPIRE", session_turns_key, retention_s)
  end
  seq = seq + 1
end
redis.call("HSET", state_key, "status", "ended", "run", run, "entry", run, "seq", seq)
redis.call("EXPIRE", state_key, retention_s)
redis.call("SET", audio_key, "ended", "EX", retention_s)
return 1
