// The public API, asked with the user's key. The key lives in this tab's session storage and nowhere else.

const [KEY, FAREWELL] = ["valence.key", "valence.farewell"];

export const session = {
  get key() {
    return sessionStorage.getItem(KEY);
  },
  open(key) {
    sessionStorage.setItem(KEY, key);
  },
  /** Ends the session; why it ended can be read once. */
  close(why = "") {
    sessionStorage.removeItem(KEY);
    sessionStorage.setItem(FAREWELL, why);
  },
  farewell() {
    const why = sessionStorage.getItem(FAREWELL);
    sessionStorage.removeItem(FAREWELL);
    return why;
  },
};

/** What the platform refused, in its words (RFC 9457), or why it can't be reached. */
export class Problem extends Error {
  constructor({ status = 0, title, detail, errors = [] }, retryAfter = null) {
    super(detail || title);
    this.status = status;
    this.title = title;
    this.errors = errors;
    this.retryAfter = retryAfter;
  }
}

/** The answer's content, how long it took, and where that time went. Empty fields are not sent. */
export async function ask(path, { body, query = {}, signal } = {}) {
  const parameters = new URLSearchParams(given(query)).toString();
  const headers = { Accept: "application/json", Authorization: `Bearer ${session.key}` };
  if (body) headers["Content-Type"] = "application/json";
  const started = performance.now();
  let response, content;
  try {
    response = await fetch(parameters ? `${path}?${parameters}` : path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(given(body)),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
    content = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "No answer", detail: "The platform can’t be reached. Is it up?" });
  }
  const milliseconds = performance.now() - started;
  if (!response.ok) throw refusal(response, content);
  return { content: JSON.parse(content), milliseconds, stages: stages(response.headers.get("Server-Timing")) };
}

function given(fields) {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== "" && value !== null && value !== undefined),
  );
}

function refusal(response, content) {
  const retryAfter = response.headers.get("Retry-After");
  try {
    return new Problem({ ...JSON.parse(content), status: response.status }, retryAfter);
  } catch {
    const title = `${response.status} ${response.statusText}`.trim();
    return new Problem({ status: response.status, title, detail: `The platform answered ${title}.` }, retryAfter);
  }
}

function stages(header) {
  return (header ?? "").split(",").flatMap((part) => {
    const found = /^\s*([\w-]+)\s*;.*\bdur=([\d.]+)/.exec(part);
    return found ? [{ name: found[1], milliseconds: Number(found[2]) }] : [];
  });
}
