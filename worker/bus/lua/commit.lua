#!lua flags=allow-oom
-- Commit: write events, the state for the next owner, and the audio trim atomically.
--
-- Returns {verdict, seq}: ok, fenced (another owner), missing (no such state), gap (the first new
-- event does not follow the last published one). Only ok writes anything.
local state_key = KEYS[1]
local lane_turns_key = KEYS[2]
local session_turns_key = KEYS[3]
local audio_key = KEYS[4]
local entry_id = ARGV[1]
local delivery_count = ARGV[2]
local nonce = ARGV[3]
local session = ARGV[4]
local out = ARGV[5]
local retention_s = tonumber(ARGV[6])  -- of state and tombstone
local turns_retention_ms = tonumber(ARGV[7])
local max_turns = ARGV[8]
local commit_number = ARGV[9]  -- 1, 2, ... per owner, the same for a retry
local first_seq = tonumber(ARGV[10])
local ending = ARGV[11]  -- "end" or ""
local snapshot = ARGV[12]
local trim_before = ARGV[13]  -- id below which the audio is trimmed, or ""
local events_at = 14  -- (type, event, traceparent or "") for each event

-- Every eighth event of a session trims the events of the lane, and its last one does. A trim that
-- removes nothing takes a tenth of the time of a commit.
local TRIM_INTERVAL = 8

local state = redis.call("HMGET", state_key, "entry", "count", "nonce", "seq", "status", "commit")
if not state[1] then
  return {"missing", 0}
end
if state[1] ~= entry_id or state[2] ~= delivery_count or state[3] ~= nonce then
  return {"fenced", tonumber(state[4])}
end
local seq = tonumber(state[4])
if state[5] == "ended" then
  return {"ok", seq}  -- a retry of the commit that ended the session
end
if tonumber(commit_number) < tonumber(state[6] or 0) then
  -- A delayed attempt from an abandoned connection: its retry and later commits are applied
  -- already, so its snapshot is out of date.
  return {"ok", seq}
end
if first_seq > seq + 1 then
  return {"gap", seq}
end
local next_seq = first_seq
local trim_turns = ending == "end"
for at = events_at, #ARGV, 3 do
  if next_seq == seq + 1 then
    local fields = {"session", session, "type", ARGV[at], "event", ARGV[at + 1]}
    if ARGV[at + 2] ~= "" then
      fields[#fields + 1] = "traceparent"
      fields[#fields + 1] = ARGV[at + 2]
    end
    redis.call("XADD", lane_turns_key, "*", unpack(fields))
    if out == "session" then
      redis.call("XADD", session_turns_key, "*", unpack(fields))
    end
    seq = seq + 1
    trim_turns = trim_turns or seq % TRIM_INTERVAL == 0
  end
  next_seq = next_seq + 1
end
if trim_turns then
  local oldest_ms = tonumber(redis.call("TIME")[1]) * 1000 - turns_retention_ms
  redis.call("XTRIM", lane_turns_key, "MINID", "~", string.format("%.0f", oldest_ms))
  redis.call("XTRIM", lane_turns_key, "MAXLEN", "~", max_turns)
end
if ending == "end" then
  redis.call("HSET", state_key, "seq", seq, "status", "ended")
  redis.call("HDEL", state_key, "snapshot", "fields")
  redis.call("EXPIRE", state_key, retention_s)
  redis.call("EXPIRE", session_turns_key, retention_s)
  redis.call("SET", audio_key, "ended", "EX", retention_s)
  return {"ok", seq}
end
redis.call("HSET", state_key, "seq", seq, "snapshot", snapshot, "commit", commit_number)
if trim_before ~= "" then
  redis.call("XTRIM", audio_key, "MINID", trim_before)
end
return {"ok", seq}
