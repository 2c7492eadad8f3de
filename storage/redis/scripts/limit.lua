-- Decides requests, one after the other, each under several rate limits at once: GCRA, by the server's own clock.
--
-- KEYS     where the rules keep their theoretical arrival times, µs since 1970; each key once
-- ARGV[1]  MessagePack: per request its cost (0 to look without charging, negative to give back) and the
--          number of its rules; then per rule the number of its key, µs between two units, units of burst
--
-- Returns MessagePack: per request allowed 0|1, then per rule µs until this cost would fit, units left,
-- µs until the burst is full. Nothing is charged unless every rule of the request allows it; a look asks
-- whether one unit would fit. What costs more than a burst never fits: it is told when the burst is full.
-- Some 5 µs a request; at most 500 of them.
local asked = cmsgpack.unpack(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local arrivals = redis.call('MGET', unpack(KEYS))
for i = 1, #KEYS do
  arrivals[i] = tonumber(arrivals[i] or 0) or 0
end

local reply, changed, size = {}, {}, 0
local max, min, floor = math.max, math.min, math.floor
local at, last = 1, #asked
while at < last do
  local cost, rules_end = asked[at], at + 1 + 3 * asked[at + 1]
  local units = cost == 0 and 1 or cost
  local allowed, first = 1, size + 1
  for rule = at + 2, rules_end, 3 do
    local key, interval = asked[rule], asked[rule + 1]
    local burst = interval * asked[rule + 2]
    -- Never further ahead than a spent burst: a clock set back must not lock anybody out.
    local arrival = max(now, min(arrivals[key], now + burst))
    local wait = arrival + min(interval * units, burst) - burst - now
    if units > 0 and wait > 0 or units > asked[rule + 2] then
      allowed = 0
    end
    arrivals[key] = arrival
    size = size + 3
    reply[size - 1] = max(wait, 0)
  end
  reply[first] = allowed
  size = first
  for rule = at + 2, rules_end, 3 do
    local key, interval = asked[rule], asked[rule + 1]
    local arrival = arrivals[key]
    if allowed == 1 and cost ~= 0 then
      arrival = max(now, arrival + interval * cost)
      arrivals[key] = arrival
      changed[key] = true
    end
    reply[size + 2] = max(0, floor((now + interval * asked[rule + 2] - arrival) / interval))
    reply[size + 3] = arrival - now
    size = size + 3
  end
  at = rules_end + 1
end

for key = 1, #KEYS do
  if changed[key] then
    local ahead = arrivals[key] - now
    if ahead > 0 then
      redis.call('SET', KEYS[key], string.format('%.0f', arrivals[key]), 'PX', math.ceil(ahead / 1000) + 1)
    else
      redis.call('DEL', KEYS[key])
    end
  end
end
return cmsgpack.pack(reply)
