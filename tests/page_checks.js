// What a page must be for somebody who does not see it, or sees little: looked at as it is now, without any library.
(() => {
  const shown = (node) => node.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && node.getClientRects().length > 0;
  const called = (node) => `${node.tagName.toLowerCase()}${node.id ? `#${node.id}` : ""}.${node.getAttribute("class") ?? ""}`;
  const words = (ids) => (ids ?? "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join(" ");

  function channels(colour) {
    const [red, green, blue, alpha = 1] = colour.match(/[\d.]+/g).map(Number);
    return { rgb: [red, green, blue], alpha };
  }
  // Of sRGB, as WCAG 2 defines relative luminance.
  function luminance(rgb) {
    const [red, green, blue] = rgb.map((value) => value / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }
  function contrast(one, other) {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  }
  // What is behind a node: the first ground that is not seen through, with those before it laid over it.
  function ground(node) {
    if (!node) return [255, 255, 255];
    const { rgb, alpha } = channels(getComputedStyle(node).backgroundColor);
    if (alpha === 1) return rgb;
    const behind = ground(node.parentElement);
    return rgb.map((value, i) => alpha * value + (1 - alpha) * behind[i]);
  }

  const controls = [...document.querySelectorAll("button, input, textarea, select, progress, summary, [tabindex], svg[role=img]")].filter(shown);
  const unnamed = controls.filter((node) => {
    const own = ["BUTTON", "SUMMARY"].includes(node.tagName) ? node.textContent : "";
    const labels = [...(node.labels ?? [])].map((label) => label.textContent).join(" ");
    return ![own, labels, node.getAttribute("aria-label") ?? "", words(node.getAttribute("aria-labelledby"))].join("").trim();
  });

  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (walker.currentNode.textContent.trim() && shown(parent) && !parent.closest("title, :disabled")) texts.push(parent);
  }
  const ratio = (node, colour) => contrast(channels(colour).rgb, ground(node));
  const ratios = [...new Set(texts)].map((node) => {
    const style = getComputedStyle(node);
    return { what: called(node), ratio: ratio(node, node instanceof SVGElement ? style.fill : style.color) };
  });
  for (const node of controls.filter((each) => each.placeholder || each.value)) {
    ratios.push({ what: called(node), ratio: ratio(node, getComputedStyle(node).color) });
    if (node.placeholder) ratios.push({ what: `${called(node)}::placeholder`, ratio: ratio(node, getComputedStyle(node, "::placeholder").color) });
  }
  const edges = controls.filter((node) => node.matches("input, select, textarea")).map((node) => ({
    what: called(node),
    ratio: contrast(channels(getComputedStyle(node).borderTopColor).rgb, ground(node.parentElement)),
  }));

  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  const references = [...document.querySelectorAll("[aria-labelledby], [aria-describedby], [aria-errormessage], [for]")].flatMap((node) =>
    ["aria-labelledby", "aria-describedby", "aria-errormessage", "for"].flatMap((name) => node.getAttribute(name)?.split(" ") ?? []),
  );
  return {
    language: document.documentElement.lang,
    title: document.title,
    landmarks: ["header", "main", "form"].map((name) => document.querySelectorAll(`body ${name}`).length),
    headings: [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter(shown).map((node) => Number(node.tagName[1])),
    live: [...document.querySelectorAll("[role=status], [aria-live]")].map((node) => node.id),
    unnamed: unnamed.map(called),
    texts: ratios.length,
    faint: ratios.filter((each) => each.ratio < 4.5),
    faintEdges: edges.filter((each) => each.ratio < 3),
    twice: ids.filter((id, i) => ids.indexOf(id) !== i),
    nowhere: references.filter((id) => !ids.includes(id)),
    beyond: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
})()
