// The admin API. `resume` and `logIn` tell whether there is a session now. The session is the browser's cookie, which no script can read; writes show a token that lives in this
// module's memory alone.

let csrf = null;
let ended = () => {};

export class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `The admin port answered ${status}.`);
    this.status = status;
    this.code = error?.code;
  }
}

export const onEnd = (callback) => { ended = callback; };

export async function send(method, path, body, signal) {
  const headers = { accept: "application/json" };
  if (method !== "GET" && csrf) headers["x-chorus-csrf"] = csrf;
  if (body !== undefined) headers["content-type"] = "application/json";
  const response = await fetch(path, {
    method, headers, signal, cache: "no-store", credentials: "same-origin", redirect: "error",
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  if (response.status === 401 && path !== "/admin/session") {
    csrf = null;
    ended();
  }
  throw new Refused(response.status, told.error);
}

export const get = async (path, signal) => (await send("GET", path, undefined, signal)).json();
export const post = async (path, body, signal) => (await send("POST", path, body ?? {}, signal)).json();

export const patch = async (path, body) => (await send("PATCH", path, body)).json();

async function began(asking) {
  csrf = (await (await asking).json()).csrf;
  return csrf !== null;
}

export const logIn = (key) => began(send("POST", "/admin/session", { key }));
export const resume = () => began(send("GET", "/admin/session"));

export async function logOut(all) {
  await send("DELETE", `/admin/session${all ? "?all=1" : ""}`);
  csrf = null;
}

export const query = (fields) => {
  const told = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) if (value) told.set(name, value);
  return told.toString();
};

// Asks again and again while the page is looked at, until `signal` ends it. Errors are told to `failed` and end nothing.
export async function poll(every, signal, work, failed) {
  while (!signal.aborted) {
    if (!document.hidden) {
      try {
        await work();
        if (signal.aborted) return;
        failed(null);
      } catch (error) {
        if (signal.aborted) return;
        failed(error);
      }
    }
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, every);
      signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
    });
  }
}
