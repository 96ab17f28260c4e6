// The frame: login, navigation, and which view is shown. Addresses are `#/view/argument`; they hold no secret.
import { logOut, onEnd, resume } from "./api.js";
import { h, replace, say } from "./dom.js";
import { keys } from "./keys.js";
import { login } from "./login.js";
import { overview } from "./overview.js";
import { playground } from "./playground.js";
import { request } from "./request.js";
import { requests } from "./requests.js";
import { routers } from "./routers.js";
import { spend } from "./spend.js";

const VIEWS = {
  live: { title: "Live", draw: overview },
  spend: { title: "Spend", draw: spend },
  requests: { title: "Requests", draw: requests },
  routers: { title: "Routers", draw: routers },
  keys: { title: "Keys", draw: keys },
  playground: { title: "Playground", draw: playground },
};
const THEMES = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };

let leaving = new AbortController();

function place() {
  const [view, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return { view: VIEWS[view] ? view : "live", argument: rest.length ? decodeURIComponent(rest.join("/")) : null };
}

function themed(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

const kept = () => (localStorage.getItem("theme") in THEMES ? localStorage.getItem("theme") : "auto");

function themeButton() {
  const names = Object.keys(THEMES);
  const button = h("button", {
    type: "button", class: "quiet", onclick: () => {
      const next = names[(names.indexOf(kept()) + 1) % names.length];
      localStorage.setItem("theme", next);
      themed(next);
      button.textContent = THEMES[next];
    },
  }, THEMES[kept()]);
  return button;
}

function frame() {
  const links = Object.entries(VIEWS).map(([name, view]) =>
    h("li", null, h("a", { href: `#/${name}`, "data-view": name }, view.title)));
  const out = h("button", {
    type: "button", class: "quiet",
    onclick: async () => { await logOut(false).catch(() => {}); showLogin(); },
  }, "Log out");
  replace(document.body,
    h("a", { class: "skip", href: "#main", onclick: (event) => { event.preventDefault(); document.getElementById("main").focus(); } }, "Skip to content"),
    h("header", { class: "side" },
      h("a", { class: "brand", href: "#/live" }, h("img", { src: "icon.svg", alt: "", width: "24", height: "24" }), "Chorus"),
      h("nav", { "aria-label": "Views" }, h("ul", null, links)),
      h("div", { class: "side-end" }, themeButton(), out)),
    h("main", { id: "main", tabindex: "-1" }),
    h("div", { id: "said", role: "status", "aria-live": "polite" }));
}

function show(moved) {
  const main = document.getElementById("main");
  if (!main) return;
  leaving.abort();
  leaving = new AbortController();
  const { view, argument } = place();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const inner = argument && view === "requests";
  const title = inner ? "Request" : VIEWS[view].title;
  document.title = `${title} · Chorus`;
  const heading = h("h1", null, title);
  const root = h("div", { class: `view view-${inner ? "request" : view}` });
  const trouble = h("p", { class: "notice bad", role: "alert", hidden: true });
  const failed = (error) => {
    trouble.hidden = error === null;
    trouble.textContent = error === null ? "" : error.message;
  };
  replace(main, h("div", { class: "top" }, heading, h("div", { class: "tools" })), trouble, root);
  const tools = main.querySelector(".tools");
  (inner ? request : VIEWS[view].draw)({ root, tools, argument, signal: leaving.signal, failed });
  window.scrollTo(0, 0);
  if (moved) main.focus({ preventScroll: true });
}

function showLogin(told) {
  leaving.abort();
  document.title = "Log in · Chorus";
  login(document.body, told, () => { frame(); show(true); });
}

themed(kept());
onEnd(() => showLogin("The session has ended; log in again."));
window.addEventListener("hashchange", () => show(true));
window.addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name !== "AbortError") say(String(event.reason?.message ?? event.reason), "bad");
});
resume().then((there) => {
  if (!there) return showLogin();
  frame();
  return show(false);
}, (error) => showLogin(error.message));
