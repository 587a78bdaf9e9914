// Tells three events, half a second apart: `node events.js PORT`. What Node's own HTTP server makes of it is passed on.
const http = require("node:http");

http
  .createServer((request, response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
    let number = 0;
    const tell = () => {
      response.write(`data: ${number}\n\n`);
      number += 1;
      if (number === 3) response.end();
      else setTimeout(tell, 500);
    };
    tell();
  })
  .listen(Number(process.argv[2]), "127.0.0.1");
