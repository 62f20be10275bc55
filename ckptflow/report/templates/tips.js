"use strict";
// Shows what a mark has to tell when it is pointed at or tapped.
const tip = document.getElementById("tip");

function show(event) {
  const mark = event.target.closest("[data-tip]");
  tip.hidden = mark === null;
  if (mark === null) return;
  tip.textContent = mark.dataset.tip;
  const place = mark.getBoundingClientRect();
  const left = Math.max(4, Math.min(place.left, document.documentElement.clientWidth - tip.offsetWidth - 4));
  tip.style.left = `${left}px`;
  tip.style.top = `${place.top - tip.offsetHeight - 6}px`;
}

document.addEventListener("pointerover", show);
document.addEventListener("click", show);
document.addEventListener("scroll", () => { tip.hidden = true; });
