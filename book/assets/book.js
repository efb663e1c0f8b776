// ipywidgets typesets its labels through MathJax 2's queue; MathJax 3 has promises instead.
const typeset = (element) => window.MathJax?.startup?.promise.then(() => MathJax.typesetPromise(element ? [element] : undefined));
window.MathJax = window.MathJax || {};
window.MathJax.Hub = { Queue: (...jobs) => jobs.forEach((job) => typeset(Array.isArray(job) ? job[2] : undefined)) };

// A slider's handle takes the slider's description as its name.
const nameHandles = () =>
  document.querySelectorAll(".widget-slider .noUi-handle:not([aria-label])").forEach((handle) => {
    const label = handle.closest(".widget-slider").querySelector(".widget-label");
    handle.setAttribute("aria-label", label?.textContent.trim() || "slider");
  });
new MutationObserver(nameHandles).observe(document.body, { childList: true, subtree: true });

// Only pages with a slide to zoom load what that takes.
const here = document.currentScript.src;
const load = (name) =>
  new Promise((done, fail) => {
    const script = Object.assign(document.createElement("script"), { src: new URL(name, here), onload: done, onerror: fail });
    document.head.append(script);
  });
if (document.querySelector(".slide-viewer")) load("openseadragon/openseadragon.min.js").then(() => load("viewer.js"));
