-- Bring the players that changed while a build was read to what they are now.
-- KEYS: build z, build m, build meta, lease
-- ARGV: step number, token, lifetime in seconds, blob (MessagePack): a flat list of
--       user id, order key now ('' = gone), username.
-- A player may stand at any place already: what the page brought is replaced.
-- Answers 'ok', 'order' or 'lost' as board_fill does.
if redis.call('GET', KEYS[4]) ~= ARGV[2] then return 'lost' end
local page = tonumber(redis.call('HGET', KEYS[3], 'pages') or '0')
if page ~= tonumber(ARGV[1]) then return 'order' end
local rows = cmsgpack.unpack(ARGV[4])
for i = 1, #rows, 3 do
  local user, key = rows[i], rows[i + 1]
  local held = redis.call('HGET', KEYS[2], user)
  if held then redis.call('ZREM', KEYS[1], string.sub(held, 1, 16) .. user) end
  if key ~= '' then
    redis.call('ZADD', KEYS[1], 0, key .. user)
    redis.call('HSET', KEYS[2], user, key .. rows[i + 2])
  else
    redis.call('HDEL', KEYS[2], user)
  end
end
redis.call('HSET', KEYS[3], 'pages', page + 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[3], ARGV[3])
redis.call('EXPIRE', KEYS[4], ARGV[3])
return 'ok'
