// Requests to the server, and what it says: JSON, a line at a time where an answer is being made.

const UNREACHED = "the server cannot be reached; is it still running?";

export async function get(path) {
  return checked(await reached(fetch(path), UNREACHED));
}

export async function getJson(path) {
  return (await get(path)).json();
}

// The lines of an answer to a form, as they come; null while it waits for its turn. Rejects with the server's own words where it refuses.
export async function* ask(form, signal) {
  const response = await reached(fetch("answers", { method: "POST", body: form, signal }), UNREACHED);
  const reader = (await checked(response)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reached(reader.read(), "the connection to the server broke; ask again");
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) yield part ? JSON.parse(part) : null;
    }
  } finally {
    reader.cancel().catch(() => {}); // so that the server stops where nobody reads on
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

async function checked(response) {
  if (response.ok) return response;
  const words = await response.json().then(({ error }) => error, () => `the server failed (${response.status}); its terminal says more`);
  throw new Error(words);
}

// Errors begin small, as what follows a name does in a terminal; here they stand alone.
export const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1);
