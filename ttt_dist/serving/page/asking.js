// Requests to the server, and what it says: JSON, a line at a time where an answer is being made.

export async function getJson(path) {
  const response = await checked(await fetch(path));
  return response.json();
}

// The lines of an answer to a form, as they come. Rejects with the server's own words where it refuses.
export async function* ask(form, signal) {
  const response = await reached(fetch("answers", { method: "POST", body: form, signal }), "the server cannot be reached; is it still running?");
  const reader = (await checked(response)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reached(reader.read(), "the connection to the server broke; ask again");
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part) yield JSON.parse(part);
  }
}

// What browsers call "Failed to fetch", in words of ours.
async function reached(promise, message) {
  try {
    return await promise;
  } catch (error) {
    throw error instanceof TypeError ? new Error(message) : error;
  }
}

export async function checked(response) {
  if (response.ok) return response;
  const words = await response.json().then(({ error }) => error, () => `the server failed (${response.status}); its terminal says more`);
  throw new Error(words);
}
