#!lua flags=allow-oom
-- Restore the entry of a live session that is missing in the stream or its group. Safe to repeat.
--
-- It also removes the old id from the pending list and from the lost ids.
-- Returns 1 if the entry was restored, 0 if it was not missing: a consumer owns it, or it is not
-- delivered yet.
local sessions_key = KEYS[1]
local lost_key = KEYS[2]  -- ids of entries that left the stream while their sessions were live
local group = ARGV[1]
local entry_id = ARGV[2]
local run = ARGV[3]
local after = ARGV[4]  -- last id of the stream before the first attempt
local fields_at = 5  -- the fields of the entry, including `run`

local function newer(a, b)
  local am, as = string.match(a, "^(%d+)-(%d+)$")
  local bm, bs = string.match(b, "^(%d+)-(%d+)$")
  am, as, bm, bs = tonumber(am), tonumber(as), tonumber(bm), tonumber(bs)
  return am > bm or (am == bm and as > bs)
end

local function waits()
  for _, row in ipairs(redis.call("XINFO", "GROUPS", sessions_key)) do
    local about = {}
    for at = 1, #row, 2 do
      about[row[at]] = row[at + 1]
    end
    if about["name"] == group then
      return newer(entry_id, about["last-delivered-id"])
        or #redis.call("XPENDING", sessions_key, group, entry_id, entry_id, 1) > 0
    end
  end
  return true  -- a recreated group begins at the first entry
end

if #redis.call("XRANGE", sessions_key, entry_id, entry_id) > 0 then
  if waits() then
    return 0
  end
  redis.call("XDEL", sessions_key, entry_id)
end
for _, row in ipairs(redis.call("XRANGE", sessions_key, "(" .. after, "+")) do
  for at = 1, #row[2], 2 do
    if row[2][at] == "run" and row[2][at + 1] == run then
      redis.call("ZREM", lost_key, entry_id)
      return 1  -- an earlier attempt or another worker restored it
    end
  end
end
redis.call("XADD", sessions_key, "*", unpack(ARGV, fields_at))
redis.call("XACK", sessions_key, group, entry_id)
redis.call("ZREM", lost_key, entry_id)
return 1
