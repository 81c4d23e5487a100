#!lua flags=allow-oom
-- Release entries, so that any worker with room can claim them at once.
--
-- KEYS  1 sessions  2 lost: ids of entries that left the stream while their sessions were live
-- ARGV  1 group  2 consumer  3 reserved consumer, then (entry id, delivery count) pairs
-- Returns how many this consumer still owned and were in the stream.
local given = 0
for at = 4, #ARGV, 2 do
  local row = redis.call("XPENDING", KEYS[1], ARGV[1], ARGV[at], ARGV[at], 1)[1]
  if row and row[2] == ARGV[2] and row[4] == tonumber(ARGV[at + 1]) then
    if #redis.call("XCLAIM", KEYS[1], ARGV[1], ARGV[3], 0, ARGV[at], "JUSTID") > 0 then
      given = given + 1
    else
      redis.call("ZADD", KEYS[2], "NX", redis.call("TIME")[1], ARGV[at])
    end
  end
end
return given
