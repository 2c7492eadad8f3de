-- Decides a request under several rate limits at once: GCRA, by the server's own clock.
--
-- KEYS[i]           where rule i keeps its theoretical arrival time, µs since 1970
-- ARGV[1]           the cost of the request, 0 to look without charging, negative to give back
-- ARGV[2i], [2i+1]  rule i: µs between two units, units of burst
--
-- Returns {allowed 0|1, then per rule: µs until this cost would fit, units left, µs until the burst is full}.
-- Nothing is charged unless every rule allows it; a look asks whether one unit would fit.
local cost = tonumber(ARGV[1])
local asked = cost == 0 and 1 or cost
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local allowed = 1
local waits, arrivals = {}, {}
for i = 1, #KEYS do
  local interval, burst = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local arrival = tonumber(redis.call('GET', KEYS[i]) or '0')
  -- Never further ahead than a spent burst: a clock set back must not lock anybody out.
  arrival = math.max(now, math.min(arrival, now + interval * burst))
  local wait = arrival + interval * asked - interval * burst - now
  if asked > 0 and wait > 0 then
    allowed = 0
  end
  waits[i], arrivals[i] = math.max(wait, 0), arrival
end

local reply = { allowed }
for i = 1, #KEYS do
  local interval, burst = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local arrival = arrivals[i]
  if allowed == 1 and cost ~= 0 then
    arrival = math.max(now, arrival + interval * cost)
    if arrival > now then
      redis.call('SET', KEYS[i], string.format('%.0f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1)
    else
      redis.call('DEL', KEYS[i])
    end
  end
  reply[#reply + 1] = waits[i]
  reply[#reply + 1] = math.max(0, math.floor((now + interval * burst - arrival) / interval))
  reply[#reply + 1] = arrival - now
end
return reply
