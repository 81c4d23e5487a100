#!lua flags=allow-oom
-- Request or renew permits for open STT sockets: first come, first served.
--
-- Returns 1 for each granted permit, 0 for each that must wait: it keeps its place in the queue, or
-- a later claim has requested it.
local queue_key = KEYS[1]
local holders_key = KEYS[2]  -- member -> "entry count ms": the last claim to request it, and when
local limit = tonumber(ARGV[1])
local expiry_ms = tonumber(ARGV[2])  -- age of a permit's last request at which it expires; 0: never
local requests_at = 3  -- (member, entry id, delivery count) for each requested permit

local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- A new member goes to the end of the queue, even if the clock was set back or the server changed.
local newest = tonumber(redis.call("ZRANGE", queue_key, -1, -1, "WITHSCORES")[2] or 0)
local score = math.max(tonumber(time[1]) * 1e6 + tonumber(time[2]), newest + 1)

local function claimed_later(member, entry, count)
  local holder = redis.call("HGET", holders_key, member) or ""
  local ms, seq, known = string.match(holder, "^(%d+)-(%d+) (%d+)")
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
  redis.call("HSET", holders_key, member, claim .. string.format(" %.0f", now))
end

local granted = {}
for at = requests_at, #ARGV, 3 do
  local member, entry, count = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  granted[#granted + 1] = 0
  if not claimed_later(member, entry, count) then
    redis.call("ZADD", queue_key, "NX", string.format("%.0f", score), member)
    hold(member, entry .. " " .. count)
    if redis.call("ZRANK", queue_key, member) < limit then
      granted[#granted] = 1
    end
  end
end
if expiry_ms > 0 then
  for _, member in ipairs(redis.call("ZRANGE", queue_key, 0, -1)) do
    local holder = redis.call("HGET", holders_key, member) or ""
    local requested = string.match(holder, " (%d+)$")
    if not requested then
      hold(member, "0-0 0")
    elseif tonumber(requested) < now - expiry_ms then
      redis.call("ZREM", queue_key, member)
      redis.call("HDEL", holders_key, member)
    end
  end
end
return granted
