#!lua flags=allow-oom
-- Claim a session: write the owner's fence into its state, publish session.started the first time.
--
-- Returns {verdict, seq, snapshot, run}; verdict is one of
--   new        first claim; session.started is published as seq 1
--   taken      the session continues from the snapshot
--   over       this session ended and its owner died before completing the entry; complete it
--   ended      an earlier session with this id ended; reject and complete the entry
--   duplicate  another entry owns the live session; reject and complete the entry
--   stale      a claim of the same entry with this count or a larger one exists; its count is in
--              the place of seq
--   unusable   a key of this session holds another type; nothing was written
local state_key = KEYS[1]
local lane_turns_key = KEYS[2]
local session_turns_key = KEYS[3]
local audio_key = KEYS[4]
local entry_id = ARGV[1]
local delivery_count = tonumber(ARGV[2])
local nonce = ARGV[3]
local run = ARGV[4]  -- of a restored entry, else its own id; only compared with an existing state
local entry_fields = ARGV[5]  -- JSON
local session = ARGV[6]
local started_event = ARGV[7]  -- JSON
local traceparent = ARGV[8]  -- or ""
local out = ARGV[9]
local first_snapshot = ARGV[10]

local function newer(a, b)
  local am, as = string.match(a, "^(%d+)-(%d+)$")
  local bm, bs = string.match(b, "^(%d+)-(%d+)$")
  am, as, bm, bs = tonumber(am), tonumber(as), tonumber(bm), tonumber(bs)
  return am > bm or (am == bm and as > bs)
end

local function holds(key, kind)
  local found = redis.call("TYPE", key).ok
  return found == "none" or found == kind
end

if not (holds(state_key, "hash") and holds(lane_turns_key, "stream")
    and holds(session_turns_key, "stream")) then
  return {"unusable", 0, "", entry_id}
end
local state =
  redis.call("HMGET", state_key, "status", "run", "entry", "count", "nonce", "seq", "snapshot")
local status = state[1]
if status == "ended" then
  local same = run == state[2] or entry_id == state[3]
  return {same and "over" or "ended", 0, "", state[2]}
end
if status then
  if entry_id ~= state[3] and not (run == state[2] and newer(entry_id, state[3])) then
    return {"duplicate", 0, "", state[2]}
  end
  local known = tonumber(state[4])
  local same_count = delivery_count == known
  if entry_id == state[3] and (delivery_count < known or (same_count and nonce ~= state[5])) then
    return {"stale", known, "", state[2]}
  end
  if entry_id ~= state[3] or not same_count or nonce ~= state[5] then
    redis.call("HSET", state_key, "entry", entry_id, "count", delivery_count, "nonce", nonce,
      "commit", 0)
  end
  return {"taken", tonumber(state[6]), state[7], state[2]}
end
if redis.call("TYPE", audio_key).ok == "string" then
  return {"ended", 0, "", entry_id}
end
redis.call("HSET", state_key, "status", "live", "run", entry_id, "entry", entry_id,
  "count", delivery_count, "nonce", nonce, "seq", 1, "fields", entry_fields,
  "snapshot", first_snapshot)
local fields = {"session", session, "type", "session.started", "event", started_event}
if traceparent ~= "" then
  fields[#fields + 1] = "traceparent"
  fields[#fields + 1] = traceparent
end
redis.call("XADD", lane_turns_key, "*", unpack(fields))
if out == "session" then
  redis.call("XADD", session_turns_key, "*", unpack(fields))
end
return {"new", 1, first_snapshot, entry_id}
