-- Publish a batch in one step.
--   KEYS   the stream
--   ARGV   message id and body, by turns
for index = 1, #ARGV, 2 do
    redis.call('XADD', KEYS[1], '*', 'id', ARGV[index], 'body', ARGV[index + 1])
end
