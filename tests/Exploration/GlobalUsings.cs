global using System;
global using System.Collections.Generic;
global using System.Linq;
global using Tdp.Explorer;
global using Tdp.Sync;
global using Xunit;
