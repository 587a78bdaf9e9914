// The least that runs a session's JavaScript: one JSON text a line on the socket that is standard input.
const socket = new (require('net').Socket)({ fd: 0, readable: true, writable: true });
const vm = require('vm');
let begun = '';
console.log = (...values) => { printed += values.join(' ') + '\n'; };
let printed = '';
socket.on('data', (piece) => {
  begun += piece;
  for (let end; (end = begun.indexOf('\n')) >= 0; begun = begun.slice(end + 1)) {
    printed = '';
    const value = vm.runInThisContext(JSON.parse(begun.slice(0, end)).code);
    socket.write(JSON.stringify({ stdout: printed, value: String(value) }) + '\n');
  }
});
socket.on('end', () => process.exit(0));
