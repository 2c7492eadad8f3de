-- Ranks of some players of a copy together with its position, from one moment.
-- KEYS: z, m, meta
-- ARGV: user ids
-- Answers nil where there is no whole copy, else epoch, revision, digest, count, then per player
-- rank (0 = no entry) and what m holds of it ('' = nothing).
local at = redis.call('HMGET', KEYS[3], 'epoch', 'revision', 'digest', 'count')
if not at[1] then return nil end
local count = tonumber(at[4])
if redis.call('HLEN', KEYS[2]) ~= count or redis.call('ZCARD', KEYS[1]) ~= count then return nil end
local out = { at[1], at[2], at[3], at[4] }
local held = redis.call('HMGET', KEYS[2], unpack(ARGV))
for i, user in ipairs(ARGV) do
  local rank = 0
  if held[i] then
    local zrank = redis.call('ZRANK', KEYS[1], string.sub(held[i], 1, 16) .. user)
    if not zrank then return nil end
    rank = zrank + 1
  end
  out[#out + 1] = rank
  out[#out + 1] = held[i] or ''
end
return out
