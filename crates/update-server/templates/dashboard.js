// Fetches the page again every few seconds and puts its content in place of the old one.
// Without it, or while somebody types, the page stays as it is.
"use strict";

const EVERY = 5000;

function busy() {
  const active = document.activeElement;
  const typing = active && active.closest("form, details");
  return document.hidden || typing || document.querySelector("main details[open]") || String(getSelection());
}

async function refresh() {
  const live = document.getElementById("live");
  if (!busy()) {
    try {
      const answer = await fetch(location.href, { credentials: "same-origin" });
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector("main");
      if (fresh && !busy()) {
        document.querySelector("main").replaceWith(document.adoptNode(fresh));
        document.title = page.title;
        reach();
        mark();
      }
    } catch (error) {
      if (live) live.textContent = ", the server does not answer";
    }
  }
  setTimeout(refresh, EVERY);
}

// A long reason scrolls in its place; who has no mouse has to get there, too.
function reach() {
  for (const reason of document.querySelectorAll(".reason")) {
    if (reason.scrollHeight > reason.clientHeight) reason.tabIndex = 0;
  }
}

function mark() {
  const live = document.getElementById("live");
  if (live) live.textContent = ", kept fresh";
}

reach();
// A problem or a sign-in is not worth asking for again.
if (!document.querySelector("main [role=alert], main input[type=password]")) {
  mark();
  setTimeout(refresh, EVERY);
}
