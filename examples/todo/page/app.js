// The page of a list: what it shows is what the Worker has acknowledged.

const api = `/api/${location.pathname.split("/")[2]}`;
const items = document.querySelector("#items");
const message = document.querySelector("#message");

async function call(method, path, body) {
	const response = await fetch(api + path, {
		method,
		headers: body && { "Content-Type": "application/json" },
		body: body && JSON.stringify(body),
	});
	if (!response.ok) {
		throw new Error(await response.text());
	}
	return response.status === 204 ? null : response.json();
}

// attempt runs what the user asked for and tells them if it could not be done.
async function attempt(work) {
	try {
		await work();
		message.textContent = items.children.length === 0 ? "Nothing to do." : "";
	} catch (error) {
		message.textContent = `That did not work: ${error.message}`;
	}
}

function show(item) {
	const row = document.querySelector("#item").content.cloneNode(true).querySelector("li");
	const box = row.querySelector("input");
	row.querySelector("span").textContent = item.text;
	row.classList.toggle("done", item.done);
	box.checked = item.done;
	box.addEventListener("change", async () => {
		await attempt(async () => {
			const { done } = await call("PUT", `/${item.id}`, { text: item.text, done: box.checked });
			row.classList.toggle("done", done);
		});
		box.checked = row.classList.contains("done");
	});
	row.querySelector("button").addEventListener("click", () =>
		attempt(async () => {
			await call("DELETE", `/${item.id}`);
			row.remove();
		}),
	);
	items.append(row);
}

document.querySelector("#new").addEventListener("submit", (event) => {
	event.preventDefault();
	const field = document.querySelector("#text");
	attempt(async () => {
		show(await call("POST", "", { text: field.value }));
		field.value = "";
	});
});

attempt(async () => (await call("GET", "")).forEach(show));
