#!lua flags=allow-oom
-- Commit: write events, the state for the next owner, and the audio trim atomically.
--
-- KEYS  1 state  2 lane turns  3 session turns  4 audio
-- ARGV  1 entry id  2 delivery count  3 nonce  4 session  5 out  6 snapshot
--       7 trim audio before this id or ""  8 "end" or ""
--       9 retention of state and tombstone, s  10 retention of turns, ms  11 turns ceiling
--       12 number of this commit: 1, 2, ... per owner, the same for a retry
--       13 seq of the first event, then (type, event, traceparent or "") for each event
-- Returns {verdict, seq}: ok, fenced (another owner), missing (no such state), gap (the first new
-- event does not follow the last published one). Only ok writes anything.
local state = redis.call("HMGET", KEYS[1], "entry", "count", "nonce", "seq", "status", "commit")
if not state[1] then
  return {"missing", 0}
end
if state[1] ~= ARGV[1] or state[2] ~= ARGV[2] or state[3] ~= ARGV[3] then
  return {"fenced", tonumber(state[4])}
end
local seq = tonumber(state[4])
if state[5] == "ended" then
  return {"ok", seq}  -- a retry of the commit that ended the session
end
if tonumber(ARGV[12]) < tonumber(state[6] or 0) then
  -- A delayed attempt from an abandoned connection: its retry and later commits are applied
  -- already, so its snapshot is out of date.
  return {"ok", seq}
end
local first = tonumber(ARGV[13])
if first > seq + 1 then
  return {"gap", seq}
end
local retention = tonumber(ARGV[9])
local published = false
for at = 14, #ARGV, 3 do
  if first == seq + 1 then
    local fields = {"session", ARGV[4], "type", ARGV[at], "event", ARGV[at + 1]}
    if ARGV[at + 2] ~= "" then
      fields[#fields + 1] = "traceparent"
      fields[#fields + 1] = ARGV[at + 2]
    end
    redis.call("XADD", KEYS[2], "*", unpack(fields))
    if ARGV[5] == "session" then
      redis.call("XADD", KEYS[3], "*", unpack(fields))
    end
    seq = seq + 1
    published = true
  end
  first = first + 1
end
if published then
  local now = redis.call("TIME")
  local oldest = tonumber(now[1]) * 1000 - tonumber(ARGV[10])
  redis.call("XTRIM", KEYS[2], "MINID", "~", string.format("%.0f", oldest))
  redis.call("XTRIM", KEYS[2], "MAXLEN", "~", ARGV[11])
end
if ARGV[8] == "end" then
  redis.call("HSET", KEYS[1], "seq", seq, "status", "ended")
  redis.call("HDEL", KEYS[1], "snapshot", "fields")
  redis.call("EXPIRE", KEYS[1], retention)
  redis.call("EXPIRE", KEYS[3], retention)
  redis.call("SET", KEYS[4], "ended", "EX", retention)
  return {"ok", seq}
end
redis.call("HSET", KEYS[1], "seq", seq, "snapshot", ARGV[6], "commit", ARGV[12])
if ARGV[7] ~= "" then
  redis.call("XTRIM", KEYS[4], "MINID", ARGV[7])
end
return {"ok", seq}
