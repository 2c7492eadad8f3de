-- Put a finished build in the place of the copy, unless something newer is there.
-- KEYS: z, m, meta, build z, build m, build meta, lease
-- ARGV: token, pages, epoch, revision, digest, count
-- A position that is not written as one is nobody's, and not newer; an epoch is a ULID that can be
-- followed.
-- Answers 'ok', 'newer', 'lost', 'order' or 'broken'.
if redis.call('GET', KEYS[7]) ~= ARGV[1] then return 'lost' end
local pages = redis.call('HGET', KEYS[6], 'pages')
if (pages or '0') ~= ARGV[2] then return 'order' end
local count = tonumber(ARGV[6])
if redis.call('HLEN', KEYS[5]) ~= count or redis.call('ZCARD', KEYS[4]) ~= count then
  redis.call('UNLINK', KEYS[4], KEYS[5], KEYS[6], KEYS[7])
  return 'broken'
end
local at = redis.call('HMGET', KEYS[3], 'epoch', 'revision', 'digest', 'count')
local sane = at[1] and at[2] and at[4] and #at[1] == #ARGV[3]
  and string.find(at[1], '^[0-7][0-9a-hjkmnp-tv-z]+$') and not string.find(at[1], '^7zzzzzzzzz')
  and string.find(at[2], '^%d+$') and tonumber(at[4])
if sane and (at[1] > ARGV[3]
    or (at[1] == ARGV[3] and tonumber(at[2]) > tonumber(ARGV[4])
        and redis.call('HLEN', KEYS[2]) == tonumber(at[4])
        and redis.call('ZCARD', KEYS[1]) == tonumber(at[4]))) then
  redis.call('UNLINK', KEYS[4], KEYS[5], KEYS[6], KEYS[7])
  return 'newer'
end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
if count > 0 then
  redis.call('RENAME', KEYS[4], KEYS[1])
  redis.call('RENAME', KEYS[5], KEYS[2])
  redis.call('PERSIST', KEYS[1])
  redis.call('PERSIST', KEYS[2])
end
redis.call('HSET', KEYS[3], 'epoch', ARGV[3], 'revision', ARGV[4], 'digest', ARGV[5], 'count', ARGV[6])
redis.call('UNLINK', KEYS[4], KEYS[5], KEYS[6], KEYS[7])
return 'ok'
