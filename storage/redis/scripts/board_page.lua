-- A page of a copy together with its position, from one moment.
-- KEYS: z, m, meta
-- ARGV: how many entries; the member after which they begin ('' = the top)
-- Answers nil where there is no whole copy, else
-- epoch, revision, digest, count, rank of the first entry, then member, username, member, …
local at = redis.call('HMGET', KEYS[3], 'epoch', 'revision', 'digest', 'count')
if not at[1] then return nil end
local count = tonumber(at[4])
if redis.call('HLEN', KEYS[2]) ~= count or redis.call('ZCARD', KEYS[1]) ~= count then return nil end
local first, members
if ARGV[2] == '' then
  first = 0
  members = redis.call('ZRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1)
else
  first = redis.call('ZLEXCOUNT', KEYS[1], '-', '[' .. ARGV[2])
  members = redis.call('ZRANGE', KEYS[1], first, first + tonumber(ARGV[1]) - 1)
end
local out = { at[1], at[2], at[3], at[4], first + 1 }
if #members > 0 then
  local users = {}
  for i, member in ipairs(members) do users[i] = string.sub(member, 17) end
  local held = redis.call('HMGET', KEYS[2], unpack(users))
  for i, member in ipairs(members) do
    if not held[i] or string.sub(held[i], 1, 16) ~= string.sub(member, 1, 16) then return nil end
    out[#out + 1] = member
    out[#out + 1] = string.sub(held[i], 17)
  end
end
return out
