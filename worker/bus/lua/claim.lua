#!lua flags=allow-oom
-- Claim a session: write the owner's fence into its state, publish session.started the first time.
--
-- KEYS  1 state  2 lane turns  3 session turns  4 audio
-- ARGV  1 entry id  2 delivery count  3 nonce  4 run of a restored entry, or the entry's own id;
--       an existing state overrides it, and a session without a state starts its own run
--       5 entry fields (JSON)  6 session  7 event (JSON)  8 traceparent or ""  9 out
--       10 initial snapshot
-- Returns {verdict, seq, snapshot, run}; verdict is one of
--   new        first claim; session.started is published as seq 1
--   taken      the session continues from the snapshot
--   over       this session ended and its owner died before completing the entry; complete it
--   ended      an earlier session with this id ended; reject and complete the entry
--   duplicate  another entry owns the live session; reject and complete the entry
--   stale      a claim of the same entry with this count or a larger one exists; its count is in
--              the place of seq
--   unusable   a key of this session holds another type; nothing was written
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

if not (holds(KEYS[1], "hash") and holds(KEYS[2], "stream") and holds(KEYS[3], "stream")) then
  return {"unusable", 0, "", ARGV[1]}
end
local entry, count, nonce, run = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local state = redis.call("HMGET", KEYS[1], "status", "run", "entry", "count", "nonce", "seq", "snapshot")
local status = state[1]
if status == "ended" then
  local same = run == state[2] or entry == state[3]
  return {same and "over" or "ended", 0, "", state[2]}
end
if status then
  if entry ~= state[3] and not (run == state[2] and newer(entry, state[3])) then
    return {"duplicate", 0, "", state[2]}
  end
  local known = tonumber(state[4])
  if entry == state[3] and (count < known or (count == known and nonce ~= state[5])) then
    return {"stale", known, "", state[2]}
  end
  if entry ~= state[3] or count ~= known or nonce ~= state[5] then
    redis.call("HSET", KEYS[1], "entry", entry, "count", count, "nonce", nonce, "commit", 0)
  end
  return {"taken", tonumber(state[6]), state[7], state[2]}
end
if redis.call("TYPE", KEYS[4]).ok == "string" then
  return {"ended", 0, "", entry}
end
redis.call("HSET", KEYS[1], "status", "live", "run", entry, "entry", entry, "count", count,
  "nonce", nonce, "seq", 1, "fields", ARGV[5], "snapshot", ARGV[10])
local fields = {"session", ARGV[6], "type", "session.started", "event", ARGV[7]}
if ARGV[8] ~= "" then
  fields[#fields + 1] = "traceparent"
  fields[#fields + 1] = ARGV[8]
end
redis.call("XADD", KEYS[2], "*", unpack(fields))
if ARGV[9] == "session" then
  redis.call("XADD", KEYS[3], "*", unpack(fields))
end
return {"new", 1, ARGV[10], entry}
