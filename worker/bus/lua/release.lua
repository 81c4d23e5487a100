#!lua flags=allow-oom
-- Release entries, so that any worker with room can claim them at once.
--
-- Returns how many this consumer still owned and were in the stream.
local sessions_key = KEYS[1]
local lost_key = KEYS[2]  -- ids of entries that left the stream while their sessions were live
local group = ARGV[1]
local consumer = ARGV[2]
local released_consumer = ARGV[3]  -- the reserved consumer of released entries
local owned_at = 4  -- (entry id, delivery count) for each entry

local released = 0
for at = owned_at, #ARGV, 2 do
  local entry_id, delivery_count = ARGV[at], tonumber(ARGV[at + 1])
  local row = redis.call("XPENDING", sessions_key, group, entry_id, entry_id, 1)[1]
  if row and row[2] == consumer and row[4] == delivery_count then
    local there =
      redis.call("XCLAIM", sessions_key, group, released_consumer, 0, entry_id, "JUSTID")
    if #there > 0 then
      released = released + 1
    else
      redis.call("ZADD", lost_key, "NX", redis.call("TIME")[1], entry_id)
    end
  end
end
return released
