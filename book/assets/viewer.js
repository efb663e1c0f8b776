// Turns each `.slide-viewer`, a picture of a slide, into layers of tiles to zoom; OpenSeadragon is there already.
const steps = [1, 2, 5].flatMap((n) => [0.1, 1, 10, 100, 1000, 10000].map((ten) => n * ten)).sort((a, b) => a - b);

function startViewer(root) {
  const { folder, size: [width, height], tile, mpp, layers } = JSON.parse(root.dataset.slide);
  const [stage, controls] = ["stage", "controls"].map((name) => root.querySelector(`.slide-${name}`));
  const [picture, outlines] = ["img", "svg"].map((name) => stage.querySelector(name));
  const inputs = (name) => [...controls.querySelectorAll(`input[data-layer="${name}"]`)];
  const opacity = (name) => {
    const [box, range] = inputs(name);
    return box.checked * (range ? range.value / 100 : 1);
  };
  const levels = Math.ceil(Math.log2(Math.max(width, height)));
  const source = (name, { format, overlap }) =>
    new OpenSeadragon.DziTileSource(width, height, tile, overlap, `${folder}/${name}/`, format, null, Math.min(8, levels), levels);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  const screen = document.createElement("div");
  screen.className = "slide-screen";
  screen.style.aspectRatio = `${width} / ${height}`;
  picture.replaceWith(screen);
  const viewer = OpenSeadragon({
    element: screen,
    drawer: "canvas",
    tileSources: Object.entries(layers).map(([name, layer]) => ({
      tileSource: layer.format ? source(name, layer) : { type: "image", url: `${folder}/${name}.png` },
      width: 1,
      opacity: opacity(name),
    })),
    showNavigationControl: false,
    cooperativeGestures: true, // the wheel and one finger scroll the page
    maxZoomPixelRatio: 4,
    visibilityRatio: 0.5,
    animationTime: still ? 0 : 0.6,
  });
  viewer.addHandler("canvas-key", (event) => {
    event.preventDefaultAction = /^[rfjk]$/i.test(event.originalEvent.key); // neither turned nor mirrored
  });
  viewer.canvas.setAttribute("role", "application");
  viewer.canvas.setAttribute("aria-label", `${picture.alt}. Arrow keys move, plus and minus zoom, 0 shows the whole slide.`);

  if (outlines) viewer.addOverlay({ element: outlines, location: new OpenSeadragon.Rect(0, 0, 1, height / width) });
  const names = [...Object.keys(layers), ...(outlines ? ["annotation"] : [])];
  names.forEach((name, number) => {
    const show = () =>
      name === "annotation"
        ? (outlines.style.visibility = opacity(name) ? "" : "hidden")
        : viewer.world.getItemAt(number)?.setOpacity(opacity(name));
    inputs(name).forEach((input) => input.addEventListener("input", show));
    if (name === "annotation") show();
  });

  const go = { in: () => viewer.viewport.zoomBy(2), out: () => viewer.viewport.zoomBy(0.5), home: () => viewer.viewport.goHome() };
  controls.querySelectorAll("[data-go]").forEach((button) =>
    button.addEventListener("click", () => {
      go[button.dataset.go]();
      viewer.viewport.applyConstraints();
    }),
  );

  const bar = document.createElement("div");
  bar.className = "slide-scale";
  stage.append(bar);
  const measure = () => {
    const wide = (viewer.viewport.getContainerSize().x * viewer.viewport.getZoom(true)) / width / (mpp ?? 1); // pixels a unit
    const length = steps.filter((step) => step * wide <= 120).pop();
    bar.style.width = `${length * wide}px`;
    bar.textContent = mpp ? (length < 1000 ? `${length} µm` : `${length / 1000} mm`) : `${length} px`;
  };
  ["open", "animation", "resize"].forEach((event) => viewer.addHandler(event, measure));
  controls.hidden = false;
}

document.querySelectorAll(".slide-viewer").forEach(startViewer);
