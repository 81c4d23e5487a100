#!lua flags=allow-oom
-- Request or renew permits for open STT sockets: first come, first served.
--
-- KEYS  1 gate  2 holders: member -> "entry count ms", the claim that requests the permit, and the
--       time of its last request
-- ARGV  1 permits  2 ms after which a permit expires without a request, 0 for never
--       then (member, entry id, delivery count) for each requested permit
-- Returns 1 for each granted permit, 0 for each that must wait: it keeps its place in the queue, or
-- a later claim has requested it.
local gate, holders, permits, lapse = KEYS[1], KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- A new member goes to the end of the queue, even if the clock was set back or the server changed.
local newest = tonumber(redis.call("ZRANGE", gate, -1, -1, "WITHSCORES")[2] or 0)
local score = math.max(tonumber(time[1]) * 1e6 + tonumber(time[2]), newest + 1)

local function outbid(member, entry, count)
  local ms, seq, known = string.match(redis.call("HGET", holders, member) or "", "^(%d+)-(%d+) (%d+)")
  if not ms then
    return false
  end
  local a, b = string.match(entry, "^(%d+)-(%d+)$")
  for _, pair in ipairs({{ms, a}, {seq, b}, {known, count}}) do
    if tonumber(pair[1]) ~= tonumber(pair[2]) then
      return tonumber(pair[1]) > tonumber(pair[2])
    end
  end
  return false
end

local function hold(member, claim)
  redis.call("HSET", holders, member, claim .. string.format(" %.0f", now))
end

local may = {}
for at = 3, #ARGV, 3 do
  local member, entry, count = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  may[#may + 1] = 0
  if not outbid(member, entry, count) then
    redis.call("ZADD", gate, "NX", string.format("%.0f", score), member)
    hold(member, entry .. " " .. count)
    if redis.call("ZRANK", gate, member) < permits then
      may[#may] = 1
    end
  end
end
if lapse > 0 then
  for _, member in ipairs(redis.call("ZRANGE", gate, 0, -1)) do
    local spoke = string.match(redis.call("HGET", holders, member) or "", " (%d+)$")
    if not spoke then
      hold(member, "0-0 0")
    elseif tonumber(spoke) < now - lapse then
      redis.call("ZREM", gate, member)
      redis.call("HDEL", holders, member)
    end
  end
end
return may
