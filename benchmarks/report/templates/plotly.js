"use strict";
// Draws each figure where it is, once it can be seen: a plot in a folded place has no width.
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const config = { responsive: true, displayModeBar: false };

function template() {
  const css = getComputedStyle(document.documentElement);
  const [ink, line, card] = ["--ink", "--line", "--card"].map((name) => css.getPropertyValue(name).trim());
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line, minor: { tickcolor: line } };
  const errors = { error_x: { color: ink }, error_y: {} };
  return {
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "system-ui, sans-serif", size: 12 },
      xaxis: axis, yaxis: axis, annotationdefaults: { bgcolor: card },
      hoverlabel: { align: "left", bgcolor: card, bordercolor: line, font: { color: ink } },
    },
    data: { bar: [errors], scatter: [errors] },
  };
}

function draw(place) {
  const { data, layout } = figures[place.dataset.figure];
  Plotly.react(place, data, { ...layout, template: template() }, config);
}

const places = [...document.querySelectorAll(".plot")];
const isSeen = (place) => place.offsetParent !== null;

// One after the other, so that the page can be read and scrolled meanwhile.
async function drawAll(chosen) {
  for (const place of chosen.filter(isSeen)) {
    draw(place);
    await new Promise((resume) => setTimeout(resume));
  }
}

document.querySelectorAll("details").forEach((details) =>
  details.addEventListener("toggle", () => drawAll([...details.querySelectorAll(".plot")])));
dark.addEventListener("change", () => drawAll(places));
drawAll(places).then(() => { document.documentElement.dataset.drawn = "yes"; });
