#!lua flags=allow-oom
-- Restore the entry of a live session that is missing in the stream or its group. Safe to repeat.
--
-- KEYS  1 sessions  2 lost: ids of entries that left the stream while their sessions were live
-- ARGV  1 group  2 id of the entry  3 run  4 last id of the stream before the first attempt
--       then the fields of the entry, including `run`
-- It also removes the old id from the pending list and from the lost ids.
-- Returns 1 if the entry was restored, 0 if it was not missing: a consumer owns it, or it is not
-- delivered yet.
local key, entry, run = KEYS[1], ARGV[2], ARGV[3]

local function newer(a, b)
  local am, as = string.match(a, "^(%d+)-(%d+)$")
  local bm, bs = string.match(b, "^(%d+)-(%d+)$")
  am, as, bm, bs = tonumber(am), tonumber(as), tonumber(bm), tonumber(bs)
  return am > bm or (am == bm and as > bs)
end

local function waits()
  for _, row in ipairs(redis.call("XINFO", "GROUPS", key)) do
    local about = {}
    for at = 1, #row, 2 do
      about[row[at]] = row[at + 1]
    end
    if about["name"] == ARGV[1] then
      return newer(entry, about["last-delivered-id"])
        or #redis.call("XPENDING", key, ARGV[1], entry, entry, 1) > 0
    end
  end
  return true  -- a recreated group begins at the first entry
end

if #redis.call("XRANGE", key, entry, entry) > 0 then
  if waits() then
    return 0
  end
  redis.call("XDEL", key, entry)
end
for _, row in ipairs(redis.call("XRANGE", key, "(" .. ARGV[4], "+")) do
  for at = 1, #row[2], 2 do
    if row[2][at] == "run" and row[2][at + 1] == run then
      redis.call("ZREM", KEYS[2], entry)
      return 1  -- an earlier attempt or another worker restored it
    end
  end
end
redis.call("XADD", key, "*", unpack(ARGV, 5))
redis.call("XACK", key, ARGV[1], entry)
redis.call("ZREM", KEYS[2], entry)
return 1
