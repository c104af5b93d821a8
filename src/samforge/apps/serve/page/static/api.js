// Talks to the server. Every failure is a Trouble with words for the person who looks at the page.

export class Trouble extends Error {
  constructor(words, { status = 0, retryAfter = 0, canRetry = false } = {}) {
    super(words);
    this.status = status;
    this.retryAfter = retryAfter;
    this.canRetry = canRetry;
  }
}

let token = "";

/** Send a token with every request from now on; it is kept in this page alone. */
export function useToken(value) {
  token = value;
}

async function sent(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  try {
    return await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached. It may have ended, or the network is gone.", {
      canRetry: true,
    });
  }
}

async function troubleFrom(response) {
  let words = "";
  try {
    words = (await response.json()).detail ?? "";
  } catch {
    words = "";
  }
  const status = response.status;
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  if (status === 401) words = "The server does not know this token.";
  if (!words) words = `The server answered ${status}, without a reason.`;
  return new Trouble(words, { status, retryAfter, canRetry: [408, 429, 503, 504].includes(status) });
}

async function answerOf(response) {
  if (!response.ok) throw await troubleFrom(response);
  return response.json();
}

/** `{ready, draining, models}`; an unready server says so, it is no failure. */
export async function readiness() {
  const response = await sent("health/ready");
  if (response.status !== 200 && response.status !== 503) throw await troubleFrom(response);
  return response.json();
}

/** Bundles and limits. */
export async function models() {
  return answerOf(await sent("v1/models"));
}

/** Upload a picture once; its id is what every question names. */
export async function keepImage(file, model, signal) {
  const form = new FormData();
  form.append("image", file, "picture");
  form.append("model", model);
  return answerOf(await sent("v1/images", { method: "POST", body: form, signal }));
}

/** Ask about a picture that is kept. */
export async function segment(imageId, body, signal) {
  return answerOf(
    await sent(`v1/images/${encodeURIComponent(imageId)}/segment`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    }),
  );
}
