import { logIn } from "./api.js";
import { field, h, replace } from "./dom.js";

export function login(body, told, done) {
  const key = h("input", { type: "password", name: "key", autocomplete: "current-password", required: true, spellcheck: "false", placeholder: "sk-chorus-admin-…" });
  const said = h("p", { class: "notice", role: "alert", hidden: !told }, told ?? "");
  const button = h("button", { type: "submit", class: "primary" }, "Log in");
  const form = h("form", {
    class: "login-card", onsubmit: async (event) => {
      event.preventDefault();
      button.disabled = true;
      const given = key.value;
      key.value = "";
      try {
        await logIn(given);
        done();
      } catch (error) {
        said.hidden = false;
        said.classList.add("bad");
        said.textContent = error.message;
        button.disabled = false;
        key.focus();
      }
    },
  },
    h("img", { src: "icon.svg", alt: "", width: "40", height: "40" }),
    h("h1", null, "Chorus"),
    h("p", { class: "muted" }, "Log in with the admin key: ", h("code", null, "keys.admin"), " of the config, or the file ",
      h("code", null, "admin.key"), " in the state folder."),
    said, field("Admin key", key), button);
  replace(body, h("main", { class: "login" }, form));
  key.focus();
}
