// Small repairs that need a script. Nothing here talks to another host.

// The arrows in the menu have no words: give each the name of the chapter whose pages it opens.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".bd-sidebar-primary li > details > summary").forEach((arrow) => {
    const chapter = arrow.closest("li").querySelector("a");
    arrow.setAttribute("aria-label", `Pages in ${chapter ? chapter.textContent.trim() : "this part"}`);
  });
});

// jupyterquiz writes its answer below the question: let a screen reader hear it.
// Quizzes draw themselves after the page has loaded, so watch for them.
document.addEventListener("DOMContentLoaded", () => {
  const article = document.querySelector("article.bd-article");
  if (!article || !article.querySelector("script")) return;
  const announce = () =>
    article.querySelectorAll(".Quiz .Feedback:not([aria-live])").forEach((text) => text.setAttribute("aria-live", "polite"));
  announce();
  new MutationObserver(announce).observe(article, { childList: true, subtree: true });
});

// Pages opened as files may not read other files: a search then shows titles without excerpts.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// A formula or a table wider than the screen scrolls: let the keyboard reach it.
document.addEventListener("DOMContentLoaded", () => {
  const reachable = new ResizeObserver((entries) =>
    entries.forEach(({ target }) => {
      if (target.scrollWidth > target.clientWidth) target.setAttribute("tabindex", "0");
      else target.removeAttribute("tabindex");
    }),
  );
  document
    .querySelectorAll("div.math, .pst-scrollable-table-container, .cell_output")
    .forEach((wide) => reachable.observe(wide));
});
