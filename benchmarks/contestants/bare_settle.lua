-- Ack a batch: only what this consumer still holds, at this attempt, is acked and deleted.
--   KEYS   the stream
--   ARGV   group, consumer, attempt, then the entries' ids, ascending
-- Gives back how many were still held. An entry is never acked for another consumer, nor for a later attempt.
local stream, group, consumer, attempt = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local pending = redis.call('XPENDING', stream, group, ARGV[4], ARGV[#ARGV], 1000000, consumer)
local held = {}
for _, entry in ipairs(pending) do
    if entry[4] == attempt then
        held[entry[1]] = true
    end
end
local ids = {}
for index = 4, #ARGV do
    if held[ARGV[index]] then
        ids[#ids + 1] = ARGV[index]
    end
end
if #ids > 0 then
    redis.call('XACK', stream, group, unpack(ids))
    redis.call('XDEL', stream, unpack(ids))
end
return #ids
