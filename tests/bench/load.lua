-- Load for wrk: requests of a file, one after the other, and the result as one line of JSON.
-- UNIQUE_TEXT in a body stands for a word that no other request has.
-- Arguments after "--": the file of requests (method, path, body; separated by tabs), and headers as NAME=VALUE.
local MARK = "UNIQUE_TEXT"
local requests, at, sent, began = {}, 0, 0, os.time()

function init(args)
  for index = 2, #args do
    local name, value = args[index]:match("^([^=]+)=(.*)$")
    wrk.headers[name] = value
  end
  for line in io.lines(args[1]) do
    local method, path, body = line:match("^([^\t]*)\t([^\t]*)\t(.*)$")
    if body == "" then
      requests[#requests + 1] = wrk.format(method, path)
    else
      wrk.headers["Content-Type"] = "application/json"
      local formatted = body:find(MARK, 1, true) == nil and wrk.format(method, path, nil, body)
      requests[#requests + 1] = formatted or { method, path, body }
    end
  end
end

function request()
  at = at % #requests + 1
  local chosen = requests[at]
  if type(chosen) == "string" then
    return chosen
  end
  sent = sent + 1
  return wrk.format(chosen[1], chosen[2], nil, (chosen[3]:gsub(MARK, began .. "x" .. sent)))
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p90_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f,'
      .. ' "bytes": %d, "bad_statuses": %d, "broken": %d, "timeouts": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3, summary.bytes, errors.status,
    errors.connect + errors.read + errors.write, errors.timeout))
end
