#!lua flags=allow-oom
-- Remove audio that nobody announced and nobody appends to any more.
--
-- KEYS  1 state  2 audio
-- ARGV  1 age of the last entry, ms, from which on audio goes
-- Returns 1 if it is gone; 0 if a session knows it, or it is younger, or no stream.
if redis.call("EXISTS", KEYS[1]) == 1 or redis.call("TYPE", KEYS[2]).ok ~= "stream" then
  return 0
end
local about = redis.call("XINFO", "STREAM", KEYS[2])
local last
for at = 1, #about, 2 do
  if about[at] == "last-generated-id" then
    last = tonumber(string.match(about[at + 1], "^(%d+)-"))
  end
end
local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if last > now - tonumber(ARGV[1]) then
  return 0
end
redis.call("UNLINK", KEYS[2])
return 1
