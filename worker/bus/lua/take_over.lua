#!lua flags=allow-oom
-- Take over released entries, and entries of owners that are dead or idle for a lease.
--
-- Returns {owned, lost}: {id, delivery count, fields, previous owner} for each entry that this
-- consumer owns now; 1 if there are lost ids. XCLAIM drops a deleted entry from the pending list.
local sessions_key = KEYS[1]
local lost_key = KEYS[2]  -- ids of entries that left the stream while their sessions were live
local group = ARGV[1]
local consumer = ARGV[2]
local released_consumer = ARGV[3]  -- the reserved consumer of released entries
local lease_ms = ARGV[4]
local max_entries = tonumber(ARGV[5])
local declined = ARGV[6]  -- ids that this consumer leaves to others, each between two spaces
local dead_at = 7  -- the consumers known to be dead

local owned = {}
local _, left_out = string.gsub(declined, "%S+", "")
local count = max_entries + left_out

local function take(rows)
  for _, row in ipairs(rows) do
    local wanted = row[2] ~= consumer and not string.find(declined, " " .. row[1] .. " ", 1, true)
    if #owned < max_entries and wanted then
      local claimed = redis.call("XCLAIM", sessions_key, group, consumer, 0, row[1])[1]
      if claimed then
        owned[#owned + 1] = {row[1], row[4] + 1, claimed[2], row[2]}
      else
        redis.call("ZADD", lost_key, "NX", redis.call("TIME")[1], row[1])
      end
    end
  end
end

take(redis.call("XPENDING", sessions_key, group, "-", "+", count, released_consumer))
for at = dead_at, #ARGV do
  take(redis.call("XPENDING", sessions_key, group, "-", "+", count, ARGV[at]))
end
if #owned < max_entries then
  take(redis.call("XPENDING", sessions_key, group, "IDLE", lease_ms, "-", "+", count))
end
return {owned, redis.call("EXISTS", lost_key)}
