// Takes what is dropped on the page, or pasted, from its first moment; files that come before paint.js runs wait for it.

const given = { first: null, take(...files) { given.first = files; } };

const showTarget = (over) => document.getElementById("stage")?.classList.toggle("over", over);
document.addEventListener("paste", ({ clipboardData }) => given.take([...clipboardData.files], "What was pasted"));
document.addEventListener("dragover", (event) => { event.preventDefault(); showTarget(true); });
document.addEventListener("dragleave", () => showTarget(false));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  showTarget(false);
  given.take([...event.dataTransfer.files], "What was dropped");
});
