-- Move a copy from one position of the history to a later one, or say why not.
-- KEYS: z, m, meta
-- ARGV: epoch, revision and digest (hex) it must stand at; epoch, revision, digest and count it
--       is to stand at; then one blob (MessagePack): a flat list of
--       user id, order key before ('' = none), order key after ('' = gone), username.
-- Answers 'ok', 'moved' (it stands somewhere else), 'broken' (its parts disagree).
-- A copy found broken loses its position, so nobody reads it.
local z, m, meta = KEYS[1], KEYS[2], KEYS[3]
local at = redis.call('HMGET', meta, 'epoch', 'revision', 'digest', 'count')
if at[1] ~= ARGV[1] or at[2] ~= ARGV[2] or at[3] ~= ARGV[3] then
  if not at[1] and (redis.call('EXISTS', z, m) > 0) then return 'broken' end
  return 'moved'
end
local count = tonumber(at[4])
local function whole(n)
  return redis.call('HLEN', m) == n and redis.call('ZCARD', z) == n
end
if not whole(count) then
  redis.call('DEL', meta)
  return 'broken'
end
local changes = cmsgpack.unpack(ARGV[8])
local rem, add, set, del = {}, {}, {}, {}
local function flush()
  local fine = true
  if #rem > 0 then fine = redis.call('ZREM', z, unpack(rem)) == #rem end
  if #del > 0 then redis.call('HDEL', m, unpack(del)) end
  if #add > 0 then redis.call('ZADD', z, unpack(add)) end
  if #set > 0 then redis.call('HSET', m, unpack(set)) end
  rem, add, set, del = {}, {}, {}, {}
  return fine
end
local fine = true
for i = 1, #changes, 4 do
  local user, before, after = changes[i], changes[i + 1], changes[i + 2]
  if before ~= '' then rem[#rem + 1] = before .. user end
  if after ~= '' then
    add[#add + 1] = 0
    add[#add + 1] = after .. user
    set[#set + 1] = user
    set[#set + 1] = after .. changes[i + 3]
  else
    del[#del + 1] = user
  end
  if #add >= 2000 or #rem >= 2000 or #del >= 2000 then fine = flush() and fine end
end
fine = flush() and fine
if not fine or not whole(tonumber(ARGV[7])) then
  redis.call('DEL', meta)
  return 'broken'
end
redis.call('HSET', meta, 'epoch', ARGV[4], 'revision', ARGV[5], 'digest', ARGV[6], 'count', ARGV[7])
return 'ok'
