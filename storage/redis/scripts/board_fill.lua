-- Put one numbered page of a build into its private keys. Pages come in order, none is left out.
-- KEYS: build z, build m, build meta, lease
-- ARGV: page number (from 0), token, lifetime in seconds, then a blob (MessagePack): a flat list
--       of user id, order key, username.
-- Answers 'ok', 'order' (the page before is not there) or 'lost' (another builder has the lease).
if redis.call('GET', KEYS[4]) ~= ARGV[2] then return 'lost' end
local page = tonumber(redis.call('HGET', KEYS[3], 'pages') or '0')
if page ~= tonumber(ARGV[1]) then return 'order' end
local rows = cmsgpack.unpack(ARGV[4])
local add, set = {}, {}
for i = 1, #rows, 3 do
  add[#add + 1] = 0
  add[#add + 1] = rows[i + 1] .. rows[i]
  set[#set + 1] = rows[i]
  set[#set + 1] = rows[i + 1] .. rows[i + 2]
  if #add >= 2000 then
    redis.call('ZADD', KEYS[1], unpack(add))
    redis.call('HSET', KEYS[2], unpack(set))
    add, set = {}, {}
  end
end
if #add > 0 then
  redis.call('ZADD', KEYS[1], unpack(add))
  redis.call('HSET', KEYS[2], unpack(set))
end
redis.call('HSET', KEYS[3], 'pages', page + 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[3], ARGV[3])
redis.call('EXPIRE', KEYS[4], ARGV[3])
return 'ok'
