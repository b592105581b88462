// Carries orders from the API of a shop to the API of a warehouse. What was carried
// is in KV: under sent/ID the time of the change that the warehouse has, and under
// "since" the time up to which nothing is missing.
//
// An order is sent when it is newer than what was sent, and then once. If a run ends
// between the warehouse's yes and the note of it in KV, the next run sends the order
// again under the same Idempotency-Key, by which the warehouse knows it.

/**
 * @typedef {{ STATE: KVNamespace, SHOP: string, WAREHOUSE: string }} Env
 * @typedef {{ id: string, updated: string }} Order  and what else the shop says of it
 * @typedef {{ at: string, sent: number, known: number, failed: number }} Run
 */

const MAX_ORDERS = 200; // in one run: it stays below the limit of subrequests
const MAX_KEYS = 100; // of one bulk get
const KEEP_SECONDS = 90 * 24 * 3600; // of what was sent; by then it is far before "since"

export default {
	/**
	 * @param {ScheduledController} controller
	 * @param {Env} env
	 */
	async scheduled(controller, env) {
		const run = await carry(env, new Date(controller.scheduledTime));
		console.log(JSON.stringify(run));
		if (run.failed > 0) {
			throw new Error(`the warehouse did not take ${run.failed} orders`); // the run has failed; they are sent again
		}
	},

	/**
	 * Shows the last run.
	 * @param {Request} _request
	 * @param {Env} env
	 */
	async fetch(_request, env) {
		const run = await env.STATE.get("run", "json");
		return Response.json(run, { status: run ? 200 : 404 });
	},
};

/**
 * @param {Env} env
 * @param {Date} now
 */
async function carry(env, now) {
	const since = (await env.STATE.get("since")) ?? new Date(0).toISOString();
	const orders = await changed(env, since);
	const sent = await alreadySent(env.STATE, orders);
	/** @type {Run} */
	const run = { at: now.toISOString(), sent: 0, known: 0, failed: 0 };
	let next = since;
	for (const order of orders) {
		if (Date.parse(order.updated) <= (sent.get(order.id) ?? -1)) {
			run.known++;
		} else if (await send(env, order)) {
			await env.STATE.put(`sent/${order.id}`, order.updated, { expirationTtl: KEEP_SECONDS });
			sent.set(order.id, Date.parse(order.updated));
			run.sent++;
		} else {
			run.failed++;
		}
		if (run.failed === 0) {
			next = order.updated; // nothing up to here is missing
		}
	}
	if (next !== since) {
		await env.STATE.put("since", next);
	}
	await env.STATE.put("run", JSON.stringify(run));
	return run;
}

/**
 * The orders that changed at a time or later, the oldest change first. Those of that
 * very time were seen already, perhaps not all.
 * @param {Env} env
 * @param {string} since
 * @returns {Promise<Order[]>}
 */
async function changed(env, since) {
	const response = await fetch(`${env.SHOP}/orders?${new URLSearchParams({ since, limit: String(MAX_ORDERS) })}`);
	if (!response.ok) {
		throw new Error(`the shop answers ${response.status}`);
	}
	return response.json();
}

/**
 * When the orders that the warehouse has were changed, by id.
 * @param {KVNamespace} state
 * @param {Order[]} orders
 */
async function alreadySent(state, orders) {
	/** @type {Map<string, number>} */
	const sent = new Map();
	for (let i = 0; i < orders.length; i += MAX_KEYS) {
		const found = await state.get(orders.slice(i, i + MAX_KEYS).map(({ id }) => `sent/${id}`));
		for (const [key, updated] of found) {
			if (updated !== null) {
				sent.set(key.slice("sent/".length), Date.parse(updated));
			}
		}
	}
	return sent;
}

/**
 * Does the warehouse have the order now?
 * @param {Env} env
 * @param {Order} order
 */
async function send(env, order) {
	try {
		const response = await fetch(`${env.WAREHOUSE}/orders/${encodeURIComponent(order.id)}`, {
			method: "PUT",
			headers: { "Content-Type": "application/json", "Idempotency-Key": `${order.id}@${order.updated}` },
			body: JSON.stringify(order),
		});
		await response.body?.cancel(); // what it says does not matter
		return response.ok || response.status === 409; // it has this order or a newer one
	} catch (error) {
		console.error(`order ${order.id}: ${error}`);
		return false;
	}
}
