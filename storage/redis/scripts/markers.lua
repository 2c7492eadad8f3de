-- Mark actions as published, each unless it is marked already.
-- KEYS[i]  the marker of action i
-- ARGV[1]  seconds they live
-- ARGV[i + 1]  what the marker of action i says
-- At most 500 of them: some 0.3 ms.
for i = 1, #KEYS do
  redis.call('SET', KEYS[i], ARGV[i + 1], 'NX', 'EX', ARGV[1])
end
return #KEYS
